"""Faults as a configuration lists them: verifiers that crash and come back, links that are cut or slow for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from simulator.config import Fault
from simulator.device import Device
from simulator.sites import Site


async def outage(fault: Fault, sites: Sequence[Site], devices: Sequence[Device]) -> None:
    """One fault, from its beginning to its end."""
    await asyncio.sleep(fault.at)
    if fault.crash is not None:
        down = [site for site in sites if fault.crash in (site.name, site.group) and site.up]
        for site in down:
            site.crash()
        await asyncio.sleep(fault.seconds)
        for site in down:
            site.start()
        return
    struck = [device for device in devices if device.tier in (fault.cut, fault.slow)]
    if fault.cut is not None:
        for device in struck:
            device.cut(fault.seconds)
        return
    for device in struck:
        device.slow(fault.by)
    await asyncio.sleep(fault.seconds)
    for device in struck:
        device.slow(-fault.by)
