from elastic.selection.measured import *
from elastic.selection.measured import Measured, Quality
