"""Events of a camera whose pixels report changes: recordings, their files, and frames of counts."""

from __future__ import annotations

from dpap.data.events.columns import read_events_npz, read_spikes
from dpap.data.events.framed import EventSettings
from dpap.data.events.readers import Label, read_aedat2, read_aedat3, read_bin, read_labels
from dpap.data.events.recording import BadEvent, Events, frames
from dpap.data.events.sets import EVENT_SETS, EVENT_SOURCES, EventSource, load_events

__all__ = [
    "EVENT_SETS",
    "EVENT_SOURCES",
    "BadEvent",
    "EventSettings",
    "EventSource",
    "Events",
    "Label",
    "frames",
    "load_events",
    "read_aedat2",
    "read_aedat3",
    "read_bin",
    "read_events_npz",
    "read_labels",
    "read_spikes",
]
