"""The lower level: minimisers over the nodes of one schedule, and the constraints that they keep."""
