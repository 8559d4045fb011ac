"""Values <-> payloads: what a job's arguments and its result look like as bytes.

    encode_call, encode_result   encode.py -> pack.py        decode_call, decode_result   decode.py
    CallCaster, caster           cast.py                     shared by all                format.py
    large payloads, in files of their own: filed.py

    payload := u32 CRC-32 of (job id + body), big-endian | body
    body    := one msgpack value; of a call: [arguments, keyword arguments]

None, bool, int, float, str, bytes, list and dict are msgpack's own types. All others have an extension code. A *leaf*
is ExtType(code, bytes). A value that holds others is a map of one entry whose key, its *tag*, is the empty ExtType of
its code: a tuple is {TUPLE: [...]}. So a payload is one flat msgpack document. If documents were packed inside others,
each level would copy the inner ones again, need a packer within a packer, and use 40 KB of C stack when it is decoded.

    code  leaf         bytes                                 code  tag                holds
    1     BIG_INT      signed, big-endian                    32    TUPLE              list
    2     DATETIME     fold, ISO 8601 text, [zone key]       33    SET                list
    3     DATE         ISO 8601 text                         34    FROZENSET          list
    4     TIME         like DATETIME                         35    ENUM               the member's value
    5     TIMEDELTA    i32 days, seconds, microseconds       36    DATACLASS          map of the fields
    6     UUID         16 bytes                              37    HASHABLE_FIELDS    map of the fields
    7     DECIMAL      text                                  38    NDARRAY            [dtype, shape, bytes]
    8     PATH         the file system's bytes               39    NUMPY_SCALAR       [dtype, bytes]
    9     BYTEARRAY    bytes
    10    COMPLEX      f64 real, imaginary
    11    RESULT_OF    a job's id, for its result
    12    ARRAY        u32 position of a block behind the body: the bytes of an array (see filed.py)
    13    BYTES        u32 position of a block: large bytes, as an argument or a result
    14    TEXT         u32 position of a block: a large text, as UTF-8

What arrives is equal and of the same type, with these exceptions:

- An Enum member arrives as its value and a dataclass as a dict of its fields (one that can be hashed as a
  `FrozenFields`, so that it may be a key or a member of a set). No class is ever named in the data: the
  annotation of the receiving function converts them back (`CallCaster`). A dataclass is rebuilt by calling
  its class, so a class with InitVars that have no default cannot come back.
- A namedtuple arrives as a tuple, unless the annotation names its class. OrderedDict, defaultdict and Counter
  arrive as dict, memoryview as bytes, a PurePath as Path, numpy.str_ and numpy.bytes_ as str and bytes,
  numpy.memmap as array.
- An instance of a subclass of a plain scalar (str, int, float, bytes, complex, datetime, date, time,
  timedelta, UUID, Decimal) arrives as that base if the two compare equal (Markup, asyncpg's UUID, pendulum's
  DateTime do; a pandas.Timestamp with nanoseconds does not). Other subclasses of containers are refused, since what
  they add would be lost.
- A time zone keeps its key if it is a ZoneInfo, and otherwise its offset from UTC at that moment, without a name.
- A NumPy array arrives in C order and writable. Object and structured dtypes are refused. One of more than 64 KiB is
  read where it lies in its file, without a copy; what is written to it stays in the process.

Two keys that differ only in that one is an Enum member and the other its plain value become equal; such a dict or set
does not decode. The value of an Enum member that is used as a key must itself be hashable.

Memory and time of decoding grow with the size of a payload, with one exception: keys and members whose hashes collide
(integers beyond 61 bits, tuples of integers) take quadratic time, as in every dict that is not keyed by text. Refusing
them would mean hashing all keys twice. Only programs of the same user can send them, and these could just as well
enqueue a job that never ends. The broker decodes no payload, and the job's timeout also ends its decoding.
"""

from taskq.protocol.codec.cast import CallCaster, caster
from taskq.protocol.codec.decode import decode_call, decode_result, results_in
from taskq.protocol.codec.encode import encode_call, encode_result
from taskq.protocol.codec.format import RESULT_OF_MARK, Ext, FrozenFields, ResultOf
from taskq.protocol.payloads.filed import CorruptPayload

__all__ = [
    "RESULT_OF_MARK",
    "CallCaster",
    "CorruptPayload",
    "Ext",
    "FrozenFields",
    "ResultOf",
    "caster",
    "decode_call",
    "decode_result",
    "encode_call",
    "encode_result",
    "results_in",
]
