//! Requests about resources: each verb to the registry, and the answer back in the form that the client accepts.

use hyper::{
    Request, Response,
    body::{Body as HttpBody, Bytes},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    SharedApi, body,
    discovery::verbs_of,
    form::Form,
    request_info::{RequestInfo, ResourceInfo},
    response::{self, Body},
    stream,
};
use crate::control::{
    authn::User,
    error::ApiError,
    registry::{
        Change, Deleted, Listed, Target,
        incoming::Incoming,
        options::{DeleteOptions, ListOptions, Query, WriteOptions},
        patch::{self, PatchKind},
        resource::{Action, Part, Subresource},
        strategic,
    },
};

/// What a request about a resource consists of.
struct Asked<'a> {
    api: &'a SharedApi,
    target: Target<'a>,
    subresource: Option<&'static Subresource>,
    user: User,
    query: Query,
    headers: hyper::HeaderMap,
    form: Form,
}

/// Answers.
///
/// # Errors
/// Whatever there is to refuse.
pub async fn answer<B>(
    api: SharedApi,
    info: &RequestInfo,
    asked: &ResourceInfo,
    user: User,
    query: Query,
    request: Request<B>,
) -> Result<Response<Body>, ApiError>
where
    B: HttpBody<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let found = api.registry.resource(&asked.group, &asked.version, &asked.plural);
    let resource = found.ok_or_else(ApiError::no_such_path)?;
    if !asked.rest.is_empty() || (!resource.namespaced && !asked.namespace.is_empty() && asked.plural != "namespaces") {
        return Err(ApiError::no_such_path());
    }
    let namespace = if resource.namespaced { asked.namespace.as_str() } else { "" };
    let target = Target { resource, namespace, name: &asked.name };
    let subresource = match asked.subresource.as_str() {
        "" => None,
        name => Some(resource.subresource(name).ok_or_else(ApiError::no_such_path)?),
    };
    let verbs = subresource.map_or(resource.verbs(), verbs_of);
    if !verbs.contains(&info.verb.as_str()) {
        return Err(ApiError::method_not_allowed());
    }
    // What lives in a namespace is made, and named, in one.
    let in_one = !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    if resource.namespaced && in_one && namespace.is_empty() {
        return Err(match info.verb.as_str() {
            "create" => ApiError::method_not_allowed(),
            _ => ApiError::no_such_path(),
        });
    }
    let (parts, content) = request.into_parts();
    let form = Form::negotiate(&parts.headers, &query)?;
    let asked = Asked { api: &api, target, subresource, user, query, headers: parts.headers, form };
    match info.verb.as_str() {
        "get" => asked.get().await,
        "list" => asked.list().await,
        "watch" => asked.watch(&info.path).await,
        "create" => {
            if subresource.is_none() && !target.name.is_empty() {
                return Err(ApiError::method_not_allowed());
            }
            asked.create(body::read(content).await?).await
        }
        "update" if target.name.is_empty() => Err(ApiError::method_not_allowed()),
        "patch" if target.name.is_empty() => Err(ApiError::method_not_allowed()),
        "update" => asked.update(body::read(content).await?).await,
        "patch" => asked.patch(body::read(content).await?).await,
        "delete" | "deletecollection" => {
            let many = info.verb == "deletecollection";
            asked.delete(body::read(content).await?, many).await
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

impl Asked<'_> {
    fn one(&self, code: u16, object: Value, warnings: &[String]) -> Response<Body> {
        let shown = match self.subresource.map(|one| one.action) {
            Some(Action::Scale | Action::Binding | Action::Eviction) => object,
            _ => self.form.one(self.target.resource, object, Timestamp::now()),
        };
        let mut answer = response::json(code, &shown);
        response::warn(&mut answer, warnings);
        answer
    }

    async fn get(&self) -> Result<Response<Body>, ApiError> {
        let object = match self.subresource.map(|one| one.action) {
            Some(Action::Scale) => self.api.registry.scale(self.target).await?,
            _ => self.api.registry.get(self.target).await?,
        };
        Ok(self.one(200, object, &[]))
    }

    async fn list(&self) -> Result<Response<Body>, ApiError> {
        let options = ListOptions::parse(&self.query, self.target.resource, false)?;
        let listed = self.api.registry.list(self.target, &options).await?;
        Ok(response::json(200, &self.listed(listed)))
    }

    fn listed(&self, listed: Listed) -> Value {
        let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
        if let Some(continuation) = listed.continuation {
            metadata["continue"] = continuation.into();
            if let Some(remaining) = listed.remaining {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        self.form.many(self.target.resource, metadata, listed.items, Timestamp::now())
    }

    async fn watch(&self, _path: &str) -> Result<Response<Body>, ApiError> {
        let options = ListOptions::parse(&self.query, self.target.resource, true)?;
        let timeout = options.timeout;
        let watching = match self.api.registry.watch(self.target, options).await {
            Ok(watching) => watching,
            // Once its options are understood, what is wrong with a watch is told as an event.
            Err(error) if matches!(error.code, 410 | 504) => return Ok(stream::failed(error)),
            Err(error) => return Err(error),
        };
        Ok(stream::watch(watching, self.target.resource, self.form, timeout, self.api.stopping.clone()))
    }

    async fn create(&self, bytes: Bytes) -> Result<Response<Body>, ApiError> {
        let mut incoming = body::object(&self.headers, &bytes)?;
        let options = WriteOptions::parse(&self.query)?;
        let registry = &self.api.registry;
        let mut warnings = Vec::new();
        let object = match self.subresource.map(|one| one.action) {
            Some(Action::Binding) => registry.bind(self.target, incoming, options.dry_run).await?,
            Some(Action::Eviction) => registry.evict(self.target, incoming, options.dry_run).await?,
            Some(_) => return Err(ApiError::method_not_allowed()),
            None => match self.target.resource.answer {
                Some(answer) => {
                    let resource = self.target.resource;
                    incoming.require_type(&resource.api_version(), resource.kind)?;
                    incoming.require_place(self.target)?;
                    let (mut object, errors) =
                        incoming.process(self.target, None, options.validation, &mut warnings)?;
                    if !errors.is_empty() {
                        return Err(ApiError::invalid(self.target.kind_subject(), &errors));
                    }
                    answer(&mut object, &self.user)?;
                    object
                }
                None => registry.create(self.target, incoming, options, &mut warnings).await?,
            },
        };
        Ok(self.one(201, object, &warnings))
    }

    async fn update(&self, bytes: Bytes) -> Result<Response<Body>, ApiError> {
        let incoming = body::object(&self.headers, &bytes)?;
        self.change(&|_: &Value| Ok(incoming.clone()), true).await
    }

    async fn patch(&self, bytes: Bytes) -> Result<Response<Body>, ApiError> {
        let media_type = body::media_type(&self.headers);
        let kind = PatchKind::of(&media_type);
        let kind = kind.ok_or_else(|| ApiError::unsupported_media_type(&PatchKind::MEDIA_TYPES))?;
        let shape = match self.subresource.map(|one| one.action) {
            Some(Action::Scale) => strategic::shape_of("Scale"),
            _ => strategic::shape_of(self.target.resource.kind),
        };
        let read = patch::read(kind, &bytes, shape)?;
        self.change(&|old: &Value| read.apply(old), false).await
    }

    /// `whole`: the client sends the object as a whole.
    async fn change(
        &self,
        make: &(dyn Fn(&Value) -> Result<Incoming, ApiError> + Send + Sync),
        whole: bool,
    ) -> Result<Response<Body>, ApiError> {
        let options = WriteOptions::parse(&self.query)?;
        let registry = &self.api.registry;
        let mut warnings = Vec::new();
        let part = match self.subresource.map(|one| one.action) {
            None => Part::Whole,
            Some(Action::Part(part)) => part,
            Some(Action::Scale) => {
                let scale = registry.set_scale(self.target, make, options, whole, &mut warnings).await?;
                return Ok(self.one(200, scale, &warnings));
            }
            Some(Action::Binding | Action::Eviction) => return Err(ApiError::method_not_allowed()),
        };
        let change = Change { part, make, replaces: whole };
        let (object, created) = registry.update(self.target, change, options, &mut warnings).await?;
        Ok(self.one(if created { 201 } else { 200 }, object, &warnings))
    }

    async fn delete(&self, bytes: Bytes, many: bool) -> Result<Response<Body>, ApiError> {
        let content = if bytes.is_empty() { Value::Null } else { body::object(&self.headers, &bytes)?.object };
        let (options, dry_run) = DeleteOptions::parse(&content, &self.query)?;
        let registry = &self.api.registry;
        if many {
            let list = ListOptions::parse(&self.query, self.target.resource, false)?;
            let listed = registry.delete_collection(self.target, &list, &options, dry_run).await?;
            return Ok(response::json(200, &self.listed(listed)));
        }
        let deleted = registry.delete(self.target, &options, dry_run).await?;
        let explicit = options.orphan_dependents == Some(false);
        let code = if explicit && matches!(deleted, Deleted::Going(_)) { 202 } else { 200 };
        Ok(self.one(code, deleted.answer(self.target), &[]))
    }
}
