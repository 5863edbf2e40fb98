-- What is remembered for good, what was summed up, and conversations that were brought from elsewhere.
create extension if not exists vector schema public;
set local search_path = router;

create table facts (
  tenant_id text not null, fact_id text not null,
  contact text not null,                        -- '': it concerns the tenant, whoever it speaks with
  domain text not null, kind text not null check (kind in ('preference', 'profile', 'event', 'task', 'note')),
  importance int not null check (importance between 1 and 10),
  text text not null, digest bytea not null,    -- of the text, which may be longer than what an index holds
  grams int[] not null,                         -- hashes of its words' parts; see domain/facts.py
  embedding_model text not null default '', embedding public.vector,      -- vectors of one model are compared with one another alone
  run_id text not null default '',
  create_time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, fact_id), unique (tenant_id, contact, digest));
create index facts_by_importance on facts (tenant_id, contact, importance desc, fact_id desc);

alter table router.facts enable row level security;
alter table router.facts force row level security;
create policy wall on router.facts using (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));
grant select, insert, update, delete on router.facts to retinue_router;

-- Remembers facts; each element: fact_id, domain, kind, importance, text, digest (hex), grams, model, vector. Answers them as they
-- are kept; no row for any: there is no room for all of them. One at a time of a contact, so that the count holds.
create function remember_1(t text, p_contact text, p_run text, p_facts jsonb, p_max int) returns setof facts language plpgsql as $$
declare fresh int;
begin
  perform set_config('app.tenant_id', t, true);
  perform pg_advisory_xact_lock(hashtextextended('facts ' || t || ' ' || p_contact, 0));
  select count(distinct x ->> 'digest') into fresh from jsonb_array_elements(p_facts) x
    where not exists (select from facts f where f.tenant_id = t and f.contact = p_contact and f.digest = decode(x ->> 'digest', 'hex'));
  if fresh > 0 and fresh + (select count(*) from facts f where f.tenant_id = t and f.contact = p_contact) > p_max then return; end if;
  return query insert into facts as f (tenant_id, fact_id, contact, domain, kind, importance, text, digest, grams, embedding_model, embedding, run_id)
    select distinct on (x ->> 'digest') t, x ->> 'fact_id', p_contact, x ->> 'domain', x ->> 'kind', (x ->> 'importance')::int, x ->> 'text',
      decode(x ->> 'digest', 'hex'), array(select (g #>> '{}')::int from jsonb_array_elements(x -> 'grams') g), x ->> 'model',
      (x ->> 'vector')::public.vector, p_run
    from jsonb_array_elements(p_facts) x order by x ->> 'digest', (x ->> 'importance')::int desc
    on conflict (tenant_id, contact, digest) do update set importance = greatest(f.importance, excluded.importance)
    returning *;
end $$;

-- How well a fact fits what is looked for, 0 to 1: which share of its parts the fact has, and where both have vectors of one model
-- also how near those are. The vector as text: '[…]'.
create function fits_1(p_grams int[], p_wanted int[], p_alike bool, p_vector public.vector, p_near text) returns double precision
language sql immutable as $$
  select case when p_alike and p_vector is not null
      then 0.7 * s.shared + 0.3 * greatest(0, coalesce(1 - nullif(p_vector operator(public.<=>) p_near::public.vector, 'NaN'), 0))
    else s.shared end
  from (select count(*) / greatest(1, cardinality(p_wanted))::double precision as shared
    from (select unnest(p_wanted) intersect select unnest(p_grams)) g) s
$$;

-- What is remembered goes with its contact.
create function forget_contact_1() returns trigger language plpgsql as $$
begin
  delete from facts f where f.tenant_id = old.tenant_id and f.contact = old.contact;
  return null;
end $$;
create trigger forget_contact after delete on contacts for each row execute function forget_contact_1();

create index events_compacted on events (tenant_id, log_id, session_id, token, n) where type = 'context.compacted';

-- What goes before a conversation, newest first like the rest of it: what was summed up, and what is remembered of the contact.
create function preface_1(t text, p_log text, p_summary text) returns jsonb language sql stable as $$
  select case when p_summary = '' then '[]'::jsonb else jsonb_build_array(jsonb_build_object('role', 'system', 'text',
      'What was said before, summed up:' || E'\n' || p_summary)) end
    || coalesce((select jsonb_build_array(jsonb_build_object('role', 'system', 'text', 'What is remembered of whom you speak with:' || E'\n' ||
      string_agg('- ' || q.text, E'\n' order by q.importance desc, q.fact_id desc)))
    from (select f.text, f.importance, f.fact_id, sum(length(f.text)) over (order by f.importance desc, f.fact_id desc) as size from (
        (select x.text, x.importance, x.fact_id from facts x where x.tenant_id = t and x.contact = ''
          order by x.importance desc, x.fact_id desc limit 30)                                           -- index facts_by_importance
        union all
        (select x.text, x.importance, x.fact_id from facts x
          where x.tenant_id = t and x.contact = (select l.contact from logs l where l.tenant_id = t and l.log_id = p_log) and x.contact <> ''
          order by x.importance desc, x.fact_id desc limit 30)) f
      order by f.importance desc, f.fact_id desc limit 30) q
    where q.size <= 6000 having count(*) > 0), '[]'::jsonb)
$$;

-- Mended: it begins where the session was summed up last, with that summary and with what is remembered as its oldest lines, of the
-- role "system".
create or replace function history_1(t text, p_log text, p_session text, p_run text, p_before bigint, p_limit int) returns jsonb language plpgsql stable as $$
declare summed jsonb; from_token bigint := 0; from_n int := 0; lines jsonb;
begin
  select e.data into summed from events e
    where e.tenant_id = t and e.log_id = p_log and e.session_id = p_session and e.type = 'context.compacted' and e.token < p_before
    order by e.token desc, e.n desc limit 1;
  if found then
    from_token := split_part(summed ->> 'through', '-', 1)::bigint; from_n := split_part(summed ->> 'through', '-', 2)::int;
  end if;
  select coalesce(jsonb_agg(jsonb_build_object('role', case h.type when 'user.message' then 'user' else 'assistant' end, 'text', h.data ->> 'text')
      order by h.token desc, h.n desc), '[]') into lines from (
    select e.type, e.data, e.token, e.n from events e
    where e.tenant_id = t and e.log_id = p_log and e.session_id = p_session and e.type in ('user.message', 'assistant.message')
      and e.token < p_before and e.run_id <> p_run and (e.token, e.n) > (from_token, from_n)
      -- Neither list depends on the event, so that each is made once.
      and (e.type = 'user.message' or e.run_id <> all (array(select r.run_id from runs r where r.tenant_id = t and r.log_id = p_log and r.dropped)))
      and e.run_id <> all (array(select r.run_id from runs r where r.tenant_id = t and r.log_id = p_log and r.dropped and r.retried_as is not null))
    order by e.token desc, e.n desc limit p_limit) h;
  return lines || preface_1(t, p_log, coalesce(summed ->> 'summary', ''));
end $$;

-- Begins a fresh session in a contact's log with events that were made elsewhere: imported | replayed | busy. Each element of ev: n,
-- type, data. They are facts at once, under a token of their own, so that a run that is accepted next finds them said.
create function import_context_1(t text, p_contact text, p_log text, p_session text, p_digest text, ev jsonb, p_name text, p_channel text,
  p_profile jsonb)
returns table (outcome text, session_id text, token bigint, events jsonb) language plpgsql as $$
declare l logs; fresh bool; written jsonb;
begin
  perform set_config('app.tenant_id', t, true);
  fresh := not exists (select from contacts c where c.tenant_id = t and c.contact = p_contact);
  l := open_log_1(t, p_log, p_contact, p_session);
  if exists (select from router.events e where e.tenant_id = t and e.log_id = p_log and e.session_id = l.session_id and e.type = 'bundle.imported'
      and e.data ->> 'bundle' = p_digest) then
    return query select 'replayed', l.session_id, l.token, '[]'::jsonb; return;
  end if;
  if l.holder is not null or exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state in ('queued', 'running', 'waiting')) then
    return query select 'busy', l.session_id, l.token, '[]'::jsonb; return;
  end if;
  if fresh then
    update contacts c set display_name = p_name, channel = p_channel, profile = p_profile where c.tenant_id = t and c.contact = p_contact;
  end if;
  update logs x set session_id = p_session, token = l.token + 1, runtime = null, runtime_time = null where x.tenant_id = t and x.log_id = p_log;
  select jsonb_agg(x || jsonb_build_object('session_id', p_session, 'run_id', '') ||
      case when x ->> 'type' = 'context.compacted' then
        jsonb_build_object('data', (x -> 'data') || jsonb_build_object('through', (l.token + 1) || '-' || (x ->> 'n'))) else '{}'::jsonb end
      order by (x ->> 'n')::int) into ev from jsonb_array_elements(ev) x;
  written := write_events_1(t, p_log, l.token + 1, ev);
  return query select 'imported', p_session, l.token + 1, written;
end $$;

-- What policy decided, of all tenants: ids, and the decision, which holds no text of anybody's.
grant select (tenant_id, run_id, create_time, decision) on router.runs to retinue_sweep;
