"""Create the table of spectra."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "v0.1.0.a"
down_revision = None

_NAME = sa.String(512).with_variant(
    mysql.VARCHAR(512, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
)
_TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "lyapunov_spectra",
        sa.Column("spectrum_id", sa.Integer, primary_key=True),
        sa.Column(
            "trial_id",
            sa.Integer,
            sa.ForeignKey(
                "trials.trial_id", ondelete="CASCADE", name="fk_lyapunov_spectra_trial_id"
            ),
        ),
        sa.Column("study_name", _NAME, nullable=False),
        sa.Column("trial_number", sa.Integer, nullable=False),
        sa.Column("trial_start", _TIME, nullable=False),
        sa.Column("module", _NAME, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("state_size", sa.Integer, nullable=False),
        sa.Column("inputs", sa.Integer, nullable=False),
        sa.Column("max_exponent", sa.Double, nullable=False),
        sa.Column("mean_exponent", sa.Double, nullable=False),
        sa.Column("clipped_fraction", sa.Double, nullable=False),
        sa.Column("exponents", sa.JSON, nullable=False),
        sa.Column("std", sa.JSON, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.UniqueConstraint(
            "trial_id", "module", "step", "state", name="uq_lyapunov_spectra_trial_id"
        ),
    )
    op.create_index(
        "ix_lyapunov_spectra_study_name", "lyapunov_spectra", ["study_name", "trial_number"]
    )
