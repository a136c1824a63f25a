"""Speed and memory beside the convolutional rival, in one process, with equal threads."""
