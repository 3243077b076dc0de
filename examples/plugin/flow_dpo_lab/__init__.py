"""A plug-in for flow-dpo (docs/plugins.md walks through it)."""
