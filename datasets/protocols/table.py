"""The known protocols as data."""

from dataclasses import dataclass

# SHA-256 of the sorted keys of the official 740 MSLS validation queries, joined by line breaks
MSLS_740_SHA256 = "89120d409e4fee1355f2d9aa54c2ec9d2948c6792f613423735121eeb0d10eff"


def about(count: int) -> range:
    """Counts within 5 % of one that is only known approximately."""
    return range(count * 95 // 100, count * 105 // 100 + 1)


@dataclass(frozen=True)
class Protocol:
    """A protocol, and how to recognise it.

    name, as reports print it; database and queries: the numbers of images, exact or a
    range; threshold in metres; frames: for image sequences, where any threshold will do that allows a prediction to be
    off by this number of frames; seasons: of the database and of the queries; keys_sha256: checksum of the
    queries' Mapillary keys; verified: whether the counts were checked at the source rather than quoted from elsewhere
    or from memory; note: for users.
    """

    name: str
    database: int | range
    queries: int | range
    threshold: float = 25.0
    frames: int | None = None
    seasons: tuple[str, str] | None = None
    keys_sha256: str | None = None
    verified: bool = True
    note: str = ""


SF_XL = about(2_800_000)
SF_XL_NOTE = "the database's count is approximate"
PAIRS = "positions are made up; each query has one positive"
PROTOCOLS = (
    Protocol("Pitts30k train", 10_000, 7_416, verified=False),
    Protocol("Pitts30k val", 10_000, 7_608),
    Protocol("Pitts30k test", 10_000, 6_816),
    Protocol("Pitts250k test", 83_952, 8_280, verified=False),
    Protocol(
        "MSLS val, all 11,084 queries",
        18_871,
        11_084,
        note="what VPR-datasets-downloader writes, without panoramas; the paper uses the official 740 instead",
    ),
    Protocol(
        "MSLS val, official 740 queries",
        18_871,
        740,
        keys_sha256=MSLS_740_SHA256,
        note="the queries are recognised by the checksum of their keys",
    ),
    Protocol("MSLS challenge", 38_770, 27_092, verified=False),
    Protocol("Nordland, 27,592 queries, within 10 frames", 27_592, 27_592, frames=10, seasons=("summer", "winter")),
    Protocol(
        "Nordland*, 2,760 queries, within 1 frame",
        27_592,
        2_760,
        frames=1,
        seasons=("winter", "summer"),
        note="query i belongs to database image 10 i",
    ),
    Protocol("Nordland (SelaVPR), 3,450 queries, within 2 frames", 3_450, 3_450, frames=2),
    Protocol("Tokyo 24/7", 75_984, 315, note="most papers resize the queries' shorter side to 480 pixels"),
    Protocol("SF-XL test v1", SF_XL, 1_000, note=SF_XL_NOTE),
    Protocol("SF-XL test v2", SF_XL, 598, note=SF_XL_NOTE),
    Protocol("SF-XL test night", SF_XL, 466, note=SF_XL_NOTE),
    Protocol("SF-XL test occlusion", SF_XL, 76, note=SF_XL_NOTE),
    Protocol(
        "SF Landmark",
        about(1_046_587),
        598,
        verified=False,
        note="the queries are those of SF-XL test v2, but the database is another one",
    ),
    *(
        Protocol(f"SF-XL small test, {name}", about(27_000), queries, note=SF_XL_NOTE)
        for name, queries in (("v1", 1_000), ("v2", 598), ("night", 466), ("occlusion", 76))
    ),
    Protocol("SVOX night", 17_166, 823),
    Protocol("SVOX overcast", 17_166, 872, verified=False),
    Protocol("SVOX rain", 17_166, 937, verified=False),
    Protocol("SVOX snow", 17_166, 870, verified=False),
    Protocol("SVOX sun", 17_166, 854, verified=False),
    Protocol("St Lucia", 1_549, 1_464, verified=False),
    Protocol("Eynsham", 23_935, about(24_000), note="the number of queries is approximate"),
    Protocol("AmsterTime", 1_231, 1_231, note=PAIRS),
    Protocol("SPED", 607, 607, note=PAIRS),
    *(
        Protocol(
            f"Baidu Mall, {threshold:g} m",
            5_207,
            3_208,
            threshold=threshold,
            verified=False,
            note="papers use 10 m and 25 m",
        )
        for threshold in (10.0, 25.0)
    ),
)
