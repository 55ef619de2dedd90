"""What `runs` needs of the parts that do I/O, as narrow protocols, and the values they exchange.

Every method may raise FaultError, and nothing else on purpose: foreign exceptions are translated
where they enter. Paths are absolute. Times are Unix seconds; sizes are bytes.
"""

from executord.ports.cache import (
    AskedOf,
    CacheKind,
    CacheLimits,
    CacheReport,
    Counted,
    Eviction,
    EvictionSum,
    EvictionTrigger,
    FetchRates,
    KindUse,
    WorkspaceUse,
)
from executord.ports.clock import Clock
from executord.ports.console import ConsoleRecord, Consoles, Stream
from executord.ports.engine import (
    BindMount,
    BuildSpec,
    BuildStep,
    ContainerFacts,
    ContainerSpec,
    ContainerState,
    Engine,
    EngineFacts,
    ImageFacts,
    VolumeMount,
)
from executord.ports.files import (
    CacheEntry,
    FileChange,
    Files,
    FilesStats,
    Kept,
    KeptWorkspace,
    Prepared,
    PruneReport,
    Revision,
)
from executord.ports.images import ImageEntry, Images, OnOutput, OnPhase, Provided
from executord.ports.integrity import DamagedObject, VerifyReport
from executord.ports.journal import (
    Accepted,
    DiskFullError,
    Journal,
    JournalError,
    OutboxState,
    RunPage,
)
from executord.ports.progress import OnProgress, Progress
from executord.ports.usage import HostUsage, Meters, UsageSample
from executord.ports.workspaces import ModeVerdict, WorkspaceMode, WorkspaceModes

__all__ = [
    "Accepted",
    "AskedOf",
    "BindMount",
    "BuildSpec",
    "BuildStep",
    "CacheEntry",
    "CacheKind",
    "CacheLimits",
    "CacheReport",
    "Clock",
    "ConsoleRecord",
    "Consoles",
    "ContainerFacts",
    "ContainerSpec",
    "ContainerState",
    "Counted",
    "DamagedObject",
    "DiskFullError",
    "Engine",
    "EngineFacts",
    "Eviction",
    "EvictionSum",
    "EvictionTrigger",
    "FetchRates",
    "FileChange",
    "Files",
    "FilesStats",
    "HostUsage",
    "ImageEntry",
    "ImageFacts",
    "Images",
    "Journal",
    "JournalError",
    "Kept",
    "KeptWorkspace",
    "KindUse",
    "Meters",
    "ModeVerdict",
    "OnOutput",
    "OnPhase",
    "OnProgress",
    "OutboxState",
    "Prepared",
    "Progress",
    "Provided",
    "PruneReport",
    "Revision",
    "RunPage",
    "Stream",
    "UsageSample",
    "VerifyReport",
    "VolumeMount",
    "WorkspaceMode",
    "WorkspaceModes",
    "WorkspaceUse",
]
