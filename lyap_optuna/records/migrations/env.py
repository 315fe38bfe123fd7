"""Run by Alembic: migrate over the connection that ``lyap_optuna.records._table`` opened."""

from alembic import context

from lyap_optuna.records import _table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=_table.METADATA,
    version_table=_table.VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
