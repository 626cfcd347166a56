"""From The Stack, a Hub dataset or a folder of repositories to packed training sequences; needs the extra `data`.

The packages follow the road of the data: `rows` (what a row is), `reading` (where rows come from), `passes` (how a verb
runs over them and survives a kill), `filtering`, `deduplication`, `packing`, `sampling`, `report`, and `pipeline` (all
of it in order). Each verb of `moe-codegen data` is a module of its name.
"""

from moe_codegen.data.deduplication.dedup import DedupSettings as DedupSettings
from moe_codegen.data.deduplication.dedup import dedup as dedup
from moe_codegen.data.filtering.clean import clean as clean
from moe_codegen.data.filtering.decontaminate import DecontaminateSettings as DecontaminateSettings
from moe_codegen.data.filtering.decontaminate import decontaminate as decontaminate
from moe_codegen.data.filtering.filters import CleanSettings as CleanSettings
from moe_codegen.data.filtering.inspect import inspect as inspect
from moe_codegen.data.packing.loading import collate as collate
from moe_codegen.data.packing.loading import load_packed as load_packed
from moe_codegen.data.packing.loading import packed_languages as packed_languages
from moe_codegen.data.packing.pack import pack as pack
from moe_codegen.data.packing.settings import PackSettings as PackSettings
from moe_codegen.data.packing.tokenizer import TokenizerSettings as TokenizerSettings
from moe_codegen.data.packing.tokenizer import make_tokenizer as make_tokenizer
from moe_codegen.data.passes.stage import read_manifest as read_manifest
from moe_codegen.data.pipeline.prepare import Plan as Plan
from moe_codegen.data.pipeline.prepare import prepare as prepare
from moe_codegen.data.pipeline.prepare import read_plan as read_plan
from moe_codegen.data.reading.settings import SourceSettings as SourceSettings
from moe_codegen.data.reading.sources import Source as Source
from moe_codegen.data.reading.sources import open_source as open_source
from moe_codegen.data.report.report import write_report as write_report
from moe_codegen.data.rows.schema import LAYOUTS as LAYOUTS
from moe_codegen.data.rows.schema import SCHEMA as SCHEMA
from moe_codegen.data.rows.schema import Layout as Layout
from moe_codegen.data.sampling.sample import SampleSettings as SampleSettings
from moe_codegen.data.sampling.sample import sample as sample
from moe_codegen.data.sampling.split import SplitSettings as SplitSettings
from moe_codegen.data.sampling.split import split as split
