"""One pair at work for many callers: tickets, turns, recovery; one thread owns torch, and nothing is HTTP."""

from bild.engine.admission import Admission, Limits
from bild.engine.engine import Engine, Load, Turn
from bild.engine.memory import Memory
from bild.engine.opening import Job, Middle, Models, begin, drafts_beams, opener, small_of
from bild.engine.prefix_cache import PrefixCache, can_keep
from bild.engine.tickets import Event, Failed, Failure, Finished, Place, Ticket, Written

__all__ = [
    "Admission",
    "Engine",
    "Event",
    "Failed",
    "Failure",
    "Finished",
    "Job",
    "Limits",
    "Load",
    "Memory",
    "Middle",
    "Models",
    "Place",
    "PrefixCache",
    "Ticket",
    "Turn",
    "Written",
    "begin",
    "can_keep",
    "drafts_beams",
    "opener",
    "small_of",
]
