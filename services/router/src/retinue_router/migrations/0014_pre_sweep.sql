-- The sweeper sees whether somebody holds what is due: a lease that ran out was rung by nobody, and needs no grace.
grant select (holder) on router.logs to retinue_sweep;
