"""A row is one file of source code: its columns, those of other datasets, its language and licence, batches of rows."""
