import pyarrow as pa
import pytest

from qb_cluster.store.tables import SCHEMA_VERSION, SCHEMAS, TABLES, columns_markdown

# In the words of the issue.
PROMISED = (
    "cell_id, sweep, model, dataset, backend, device, scheme, bits, weight_bits, "
    "activation_bits, execution, status, error, baseline_cell_id, metric, value, "
    "baseline_value, delta, delta_low, delta_high, p_value, flips_worse, flips_better, "
    "top1_agreement, sqnr_db, cosine, max_abs_error, artifact_bytes, baseline_artifact_bytes, "
    "bits_per_weight, latency_median_ns, baseline_latency_median_ns, speedup, examples, "
    "attempt, started_at, finished_at, env_id"
)


def test_results_have_every_promised_column():
    assert set(PROMISED.split(", ")) <= set(SCHEMAS["results"].names)


@pytest.mark.parametrize("table", TABLES)
def test_a_schema_says_its_table_its_version_and_what_each_column_means(table):
    schema = SCHEMAS[table]
    assert schema.metadata[b"qb_cluster.table"] == table.encode()
    assert schema.metadata[b"qb_cluster.schema_version"] == str(SCHEMA_VERSION).encode()
    assert len(set(schema.names)) == len(schema.names)
    assert all(field.metadata[b"description"] for field in schema)


def test_text_is_plain_text_so_that_parts_can_be_put_together():
    types = {field.type for schema in SCHEMAS.values() for field in schema}
    assert not any(pa.types.is_dictionary(type_) for type_ in types)


@pytest.mark.parametrize("table", TABLES)
def test_the_documentation_lists_each_column_once_on_a_line_of_three_fields(table):
    header, rule, *lines = columns_markdown(table).splitlines()
    assert set(rule) <= set("|-:")
    assert header.split("|")[1].strip() == "column"
    names = [line.replace(r"\|", "").split("|")[1].strip(" `") for line in lines]
    assert names == SCHEMAS[table].names
    assert all(line.replace(r"\|", "").count("|") == 4 for line in lines)
