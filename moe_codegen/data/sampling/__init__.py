"""How many files a stated precision needs, which ones, and which of them are held out."""
