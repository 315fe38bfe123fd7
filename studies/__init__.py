"""Programs on the public interface of lyap_optuna; not part of the installed package."""
