"""The teacher at work: jobs, what is done of them, the merging of shards, and the engines that write."""
