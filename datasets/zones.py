"""UTM zones as signed numbers: 1 to 60 north of the equator, -1 to -60 south of it, 0 where the zone is unknown."""

import re

import numpy as np

ZONE = re.compile("0?([1-9])([NS])|([1-5][0-9]|60)([NS])")
UNKNOWN_ZONE = 0
UTM_LATITUDES = (-80.0, 84.0)  # beyond are other grids
MAX_METRES_IN_ZONE = 2e7  # of a northing; farther is no point on Earth


def zone_of_text(text: str) -> int | None:
    """The zone that a text such as "32N" states, in which N and S are the hemispheres; None if it states none."""
    match = ZONE.fullmatch(text)
    if match is None:
        return None
    number, hemisphere = (part for part in match.groups() if part)
    return int(number) if hemisphere == "N" else -int(number)


def zone_text(zone: int) -> str | None:
    """Such as "32N" or "56S"; None for an unknown zone."""
    return f"{abs(zone)}{'N' if zone > 0 else 'S'}" if zone else None


def common_zone(zones: np.ndarray) -> int:
    """The zone in which all of [N] positions lie; 0 if one is unknown, or they differ, or there is none."""
    return int(zones[0]) if len(zones) and (zones == zones[0]).all() else UNKNOWN_ZONE


def degrees_of_utm(utms: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """Easting and northing [N, 2] in metres, and their zones [N] -> latitude and longitude [N, 2], float64, WGS 84.

    NaN where a position or its zone is unknown, and where the zone has no such point.
    """
    import utm

    degrees = np.full((len(utms), 2), np.nan)
    for zone in np.unique(zones[zones != UNKNOWN_ZONE]).tolist():
        rows = zones == zone
        degrees[rows] = np.stack(utm.to_latlon(*utms[rows].T, abs(zone), northern=zone > 0, strict=False), axis=1)
    degrees[~((np.abs(utms) <= MAX_METRES_IN_ZONE) & (np.abs(degrees) <= (90, 180))).all(axis=1)] = np.nan
    return degrees
