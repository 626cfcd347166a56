"""From The Stack, a Hub dataset or a folder of repositories to packed training sequences; needs the extra `data`.

One module per verb of `moe-codegen data` (`cleaning`, `dedup`, `decontamination`, `sampling`, `splitting`,
`tokenization`, `packing`, `reporting`, `preparation`) and beneath them the parts they share: where rows come from
(`sources`), what a row is (`schema`), and how a pass over them survives a kill (`stage`).
"""
