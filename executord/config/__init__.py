"""The only reader of TOML and of the environment; what comes out is frozen and checked."""

from executord.config.environment import (
    EnvironmentVariableError,
    LogSettings,
    ServiceManager,
    log_settings,
    service_manager,
)
from executord.config.load import Host, load, parse, this_host
from executord.config.problems import ConfigError, Problem
from executord.config.render import render
from executord.config.settings import (
    Access,
    Address,
    Api,
    Engine,
    Files,
    Images,
    Node,
    Retention,
    Runs,
    Settings,
    Store,
    Upstream,
    Usage,
    UserIds,
)

__all__ = [
    "Access",
    "Address",
    "Api",
    "ConfigError",
    "Engine",
    "EnvironmentVariableError",
    "Files",
    "Host",
    "Images",
    "LogSettings",
    "Node",
    "Problem",
    "Retention",
    "Runs",
    "ServiceManager",
    "Settings",
    "Store",
    "Upstream",
    "Usage",
    "UserIds",
    "load",
    "log_settings",
    "parse",
    "render",
    "service_manager",
    "this_host",
]
