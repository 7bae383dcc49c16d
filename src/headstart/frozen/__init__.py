"""The frozen bottom of a network, computed once: when that holds, and where it is kept."""
