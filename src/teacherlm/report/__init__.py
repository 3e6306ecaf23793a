"""Pages, tables and charts of results, with tests of significance."""
