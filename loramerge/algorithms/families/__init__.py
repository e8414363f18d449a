"""What the methods of one family share: sizes, spans, mixtures, federations, clusters, refits."""
