"""Reading packed shards: splits, crops, order, loader, workers, integrity, labels. Writing them is `pack`."""
