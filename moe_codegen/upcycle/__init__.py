"""From dense checkpoints to a mixture and back: plan, execute, verify, quantise, extract, export."""

from moe_codegen.upcycle.convert import UpcycleReport as UpcycleReport
from moe_codegen.upcycle.convert import upcycle as upcycle
from moe_codegen.upcycle.export import ExportReport as ExportReport
from moe_codegen.upcycle.export import export as export
from moe_codegen.upcycle.extract import ExtractReport as ExtractReport
from moe_codegen.upcycle.extract import extract as extract
from moe_codegen.upcycle.quantise import QuantiseReport as QuantiseReport
from moe_codegen.upcycle.quantise import quantise as quantise
from moe_codegen.upcycle.verify import LayerCheck as LayerCheck
from moe_codegen.upcycle.verify import VerifyReport as VerifyReport
from moe_codegen.upcycle.verify import verify as verify
