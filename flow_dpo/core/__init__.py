"""Flow-DPO itself: values, trees, flows, exploration, credit, the DPO loss, the protocols, and the training loop.

May import no other room.
"""
