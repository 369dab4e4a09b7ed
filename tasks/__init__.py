"""Tasks: models, data, requests and oracles, one file each."""
