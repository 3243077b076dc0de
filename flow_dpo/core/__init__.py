"""What is Flow-DPO? Values, trees, flows, exploration, credit, the DPO loss, the protocols and the training loop.

May import no other room.
"""
