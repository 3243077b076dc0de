"""What can be typed? One module a command of `flow-dpo`.

May import every other room.
"""
