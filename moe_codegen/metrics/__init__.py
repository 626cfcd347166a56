"""What a language model is measured by while it trains and after: loss by language, and the load of its experts."""

from moe_codegen.metrics.intervals import Interval as Interval
from moe_codegen.metrics.intervals import ratio_interval as ratio_interval
from moe_codegen.metrics.intervals import share_difference_interval as share_difference_interval
from moe_codegen.metrics.intervals import share_interval as share_interval
from moe_codegen.metrics.load import ExpertLoad as ExpertLoad
from moe_codegen.metrics.load import LoadCounts as LoadCounts
from moe_codegen.metrics.loss import DocumentLosses as DocumentLosses
from moe_codegen.metrics.loss import document_losses as document_losses
from moe_codegen.metrics.loss import loss_differences as loss_differences
from moe_codegen.metrics.loss import losses_by_language as losses_by_language
from moe_codegen.metrics.routing import load_summary as load_summary
from moe_codegen.metrics.windows import Document as Document
from moe_codegen.metrics.windows import EncodedDocument as EncodedDocument
from moe_codegen.metrics.windows import encode_documents as encode_documents
from moe_codegen.metrics.windows import start_token as start_token
