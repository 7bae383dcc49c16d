"""Models by name: numbered versions with their lineage, aliases that say which one serves, and a gate between them."""
