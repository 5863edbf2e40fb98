-- A process that is stopped in the middle of a transaction keeps its locks for as long as it is stopped. Transactions of
-- this service take milliseconds, and each of its statements is given up after 10 s: what lasts longer belongs to nobody.
alter role retinue_directory set idle_in_transaction_session_timeout = '5s';
alter role retinue_directory set transaction_timeout = '15s';
