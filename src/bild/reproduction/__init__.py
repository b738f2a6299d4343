"""The paper's tables and figures, on any pair and data.

reproduce("table1", Inputs(setup=Setup(runtime="static"), test=sets, dev=dev_sets), Path("out"))
"""

from bild.reproduction.inputs import Inputs, Variant
from bild.reproduction.items import ALL, ITEMS, item_names, reproduce
from bild.reproduction.result import Result
from bild.reproduction.workspace import Workspace

__all__ = ["ALL", "ITEMS", "Inputs", "Result", "Variant", "Workspace", "item_names", "reproduce"]
