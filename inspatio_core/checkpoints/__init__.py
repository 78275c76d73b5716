"""Network weights that do not ship: what each file is, where it belongs, how it is fetched, and strict loading.

`table` knows the files by name, `files` what is in one, `manifest` what must be in one.
"""

from inspatio_core.checkpoints.files import headers as headers
from inspatio_core.checkpoints.files import metadata as metadata
from inspatio_core.checkpoints.manifest import KINDS as KINDS
from inspatio_core.checkpoints.manifest import Report as Report
from inspatio_core.checkpoints.manifest import convert as convert
from inspatio_core.checkpoints.manifest import plain_key as plain_key
from inspatio_core.checkpoints.manifest import read_state_dict as read_state_dict
from inspatio_core.checkpoints.manifest import renamed as renamed
from inspatio_core.checkpoints.manifest import shapes_of as shapes_of
from inspatio_core.checkpoints.manifest import verify as verify
from inspatio_core.checkpoints.table import CHECKPOINTS as CHECKPOINTS
from inspatio_core.checkpoints.table import Checkpoint as Checkpoint
from inspatio_core.checkpoints.table import download as download
from inspatio_core.checkpoints.table import get as get
from inspatio_core.checkpoints.table import locate as locate
from inspatio_core.checkpoints.table import require as require
