"""Results become pages, tables and pictures, with their significance."""
