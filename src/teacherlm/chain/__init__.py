"""The stages one after the other: a chain's settings, what is known of the site, and how far the jobs are."""
