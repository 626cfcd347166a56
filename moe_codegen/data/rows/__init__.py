"""A row is one file of source code: its columns, those of other datasets, its licence, batches of rows."""
