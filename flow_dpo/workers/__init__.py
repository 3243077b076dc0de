"""Who samples the rollouts, and where: in this process today, the seam for servers and a cluster.

May import core."""
