"""Reading `shards.yaml`: a fleet, or every fault of the file with its line, path and fix."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from shardctl.fleet import coverage, yamlfile
from shardctl.fleet.spec import DEFAULT_PATH, Fleet
from shardctl.fleet.spec_errors import Fault, SpecError, explained
from shardctl.fleet.yamlfile import YamlFile


def load_fleet(path: Path = DEFAULT_PATH) -> Fleet:
    """Read `shards.yaml` and prove that it makes a fleet.

    Raises YamlError, or SpecError with every fault it found.
    """
    return fleet_from(yamlfile.read(path))


def fleet_from(file: YamlFile) -> Fleet:
    if not isinstance(file.data, dict):
        raise SpecError(file, [Fault((), "holds no settings.", "`shardctl init` writes a file to start from.")])
    try:
        fleet = Fleet.model_validate(file.data)
    except ValidationError as error:
        raise SpecError(file, explained(file, Fleet, error.errors())) from error
    faults = coverage.faults(fleet)
    if faults:
        raise SpecError(file, faults)
    return fleet
