"""Teaching small language models with explanations: the TeacherLM pipeline, and the ATLAS experiments on MMLU."""
