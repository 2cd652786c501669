"""A study: rows of settings, trained and evaluated with several seeds on several splits, in one table."""
