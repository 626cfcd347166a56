"""Where rows come from: Parquet, JSON Lines, folders of repositories, the Hub."""
