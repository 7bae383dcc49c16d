"""The artefact: saved, loaded and proved; run by another engine; without the backbone's weights."""

from headstart.bundle.bundle import EVIDENCE, Bundle, lineage, load, make_probe, network, read_record

__all__ = ["EVIDENCE", "Bundle", "lineage", "load", "make_probe", "network", "read_record"]
