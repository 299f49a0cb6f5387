"""What stands behind `data_pipelines.tokenizer`: reading, converting and training tokenizers."""
