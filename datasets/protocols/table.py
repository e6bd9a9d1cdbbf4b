"""The known protocols as data."""

from dataclasses import dataclass

# SHA-256 of the sorted keys of the official 740 MSLS validation queries, joined by line breaks
MSLS_740_SHA256 = "89120d409e4fee1355f2d9aa54c2ec9d2948c6792f613423735121eeb0d10eff"


def about(count: int) -> range:
    """Counts within 5 % of one that is only known approximately."""
    return range(count * 95 // 100, count * 105 // 100 + 1)


@dataclass(frozen=True, kw_only=True)
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
    Protocol(name="Pitts30k train", database=10_000, queries=7_416, verified=False),
    Protocol(name="Pitts30k val", database=10_000, queries=7_608),
    Protocol(name="Pitts30k test", database=10_000, queries=6_816),
    Protocol(name="Pitts250k test", database=83_952, queries=8_280, verified=False),
    Protocol(
        name="MSLS val, all 11,084 queries",
        database=18_871,
        queries=11_084,
        note="what VPR-datasets-downloader writes, without panoramas; the paper uses the official 740 instead",
    ),
    Protocol(
        name="MSLS val, official 740 queries",
        database=18_871,
        queries=740,
        keys_sha256=MSLS_740_SHA256,
        note="the queries are recognised by the checksum of their keys",
    ),
    Protocol(name="MSLS challenge", database=38_770, queries=27_092, verified=False),
    Protocol(
        name="Nordland, 27,592 queries, within 10 frames",
        database=27_592,
        queries=27_592,
        frames=10,
        seasons=("summer", "winter"),
    ),
    Protocol(
        name="Nordland*, 2,760 queries, within 1 frame",
        database=27_592,
        queries=2_760,
        frames=1,
        seasons=("winter", "summer"),
        note="query i belongs to database image 10 i",
    ),
    Protocol(name="Nordland (SelaVPR), 3,450 queries, within 2 frames", database=3_450, queries=3_450, frames=2),
    Protocol(
        name="Tokyo 24/7",
        database=75_984,
        queries=315,
        note="most papers resize the queries' shorter side to 480 pixels",
    ),
    Protocol(name="SF-XL test v1", database=SF_XL, queries=1_000, note=SF_XL_NOTE),
    Protocol(name="SF-XL test v2", database=SF_XL, queries=598, note=SF_XL_NOTE),
    Protocol(name="SF-XL test night", database=SF_XL, queries=466, note=SF_XL_NOTE),
    Protocol(name="SF-XL test occlusion", database=SF_XL, queries=76, note=SF_XL_NOTE),
    Protocol(
        name="SF Landmark",
        database=about(1_046_587),
        queries=598,
        verified=False,
        note="the queries are those of SF-XL test v2, but the database is another one",
    ),
    *(
        Protocol(name=f"SF-XL small test, {name}", database=about(27_000), queries=queries, note=SF_XL_NOTE)
        for name, queries in (("v1", 1_000), ("v2", 598), ("night", 466), ("occlusion", 76))
    ),
    Protocol(name="SVOX night", database=17_166, queries=823),
    Protocol(name="SVOX overcast", database=17_166, queries=872, verified=False),
    Protocol(name="SVOX rain", database=17_166, queries=937, verified=False),
    Protocol(name="SVOX snow", database=17_166, queries=870, verified=False),
    Protocol(name="SVOX sun", database=17_166, queries=854, verified=False),
    Protocol(name="St Lucia", database=1_549, queries=1_464, verified=False),
    Protocol(name="Eynsham", database=23_935, queries=about(24_000), note="the number of queries is approximate"),
    Protocol(name="AmsterTime", database=1_231, queries=1_231, note=PAIRS),
    Protocol(name="SPED", database=607, queries=607, note=PAIRS),
    *(
        Protocol(
            name=f"Baidu Mall, {threshold:g} m",
            database=5_207,
            queries=3_208,
            threshold=threshold,
            verified=False,
            note="papers use 10 m and 25 m",
        )
        for threshold in (10.0, 25.0)
    ),
)
