from loramerge.adapter import Adapter as Adapter
from loramerge.adapter import BaseModel as BaseModel
from loramerge.adapter import Provenance as Provenance
from loramerge.algorithms import METHODS as METHODS
from loramerge.algorithms import Average as Average
from loramerge.algorithms import Cat as Cat
from loramerge.algorithms import Lego as Lego
from loramerge.algorithms import Linear as Linear
from loramerge.algorithms import Method as Method
from loramerge.algorithms import Svd as Svd
from loramerge.difference import Difference as Difference
from loramerge.difference import diff as diff
from loramerge.driver import Merge as Merge
from loramerge.driver import combine as combine
from loramerge.errors import IncompatibleError as IncompatibleError
from loramerge.errors import LoramergeError as LoramergeError
from loramerge.errors import OutputError as OutputError
from loramerge.errors import SourceError as SourceError
from loramerge.errors import UsageError as UsageError
from loramerge.errors import VerificationError as VerificationError
from loramerge.formats import load as load
from loramerge.formats import save as save
from loramerge.formats.state import from_state_dict as from_state_dict
from loramerge.formats.state import to_state_dict as to_state_dict
from loramerge.inspection import Inspection as Inspection
from loramerge.inspection import inspect as inspect
from loramerge.lowrank import LowRank as LowRank
from loramerge.planning import Plan as Plan
from loramerge.planning import plan as plan
from loramerge.plotting import plot_spectra as plot_spectra
from loramerge.replaying import replay as replay
from loramerge.report import Report as Report
from loramerge.schedule import Ramp as Ramp
from loramerge.schedule import Rule as Rule
from loramerge.target import Target as Target

__version__: str
__all__: list[str]
