"""What a person sees: progress, tables, sizes."""

from moe_codegen.reporting.progress import Progress as Progress
from moe_codegen.reporting.progress import bytes_bar as bytes_bar
from moe_codegen.reporting.progress import count_bar as count_bar
from moe_codegen.reporting.progress import no_progress as no_progress
from moe_codegen.reporting.tables import format_bytes as format_bytes
from moe_codegen.reporting.tables import format_count as format_count
from moe_codegen.reporting.tables import table as table
