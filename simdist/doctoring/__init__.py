"""What `simdist.doctor` looks at: this machine, the data, a cluster, and one of its nodes."""
