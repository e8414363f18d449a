"""What methods of one family share: ranks, spans, mixtures, means of clients, k-means, refits."""
