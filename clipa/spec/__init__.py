"""What a recipe, a cluster and a plan are. Pure: no files but the TOML that is named, no network, no torch."""
