"""A plug-in for flow-dpo, explained in docs/plugins.md."""
