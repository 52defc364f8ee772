//! `#[derive(State)]`: a machine's state from its fields.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Fields, parse_macro_input};

/// Makes a struct of `Table`, `Set` and `Cell` fields a `State`.
#[proc_macro_derive(State)]
pub fn derive_state(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput), &quote!(::chronon_kernel)).into()
}

/// The same for programs that know the kernel only through the facade, which gives it out under the name `State`.
#[proc_macro_derive(FacadeState)]
pub fn derive_facade_state(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput), &quote!(::chronon)).into()
}

fn expand(input: &DeriveInput, kernel: &Tokens) -> Tokens {
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(data) => {
            let why = "a State is a struct: keep an enum inside one of its tables or cells";
            return syn::Error::new(data.enum_token.span, why).to_compile_error();
        }
        Data::Union(data) => {
            return syn::Error::new(data.union_token.span, "a State is a struct").to_compile_error();
        }
    };
    let name = &input.ident;
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    let field = quote!(#kernel::StateField);
    let members = fields.members();
    let drains = fields.members().zip(fields).map(|(member, declared)| {
        let ty = &declared.ty;
        quote_spanned!(ty.span()=> fold.word(<#ty as #field>::drain_writes(&mut self.#member));)
    });
    let encodes = members.zip(fields).map(|(member, declared)| {
        let ty = &declared.ty;
        quote_spanned!(ty.span()=> <#ty as #field>::encode(&self.#member, bytes);)
    });
    let decodes = fields.members().zip(fields).map(|(member, declared)| {
        let ty = &declared.ty;
        quote_spanned!(ty.span()=> #member: <#ty as #field>::decode(bytes)?)
    });
    // `fold` and `bytes` are unused in a state without fields.
    let unused = matches!(fields, Fields::Unit) || fields.is_empty();
    let use_bytes = unused.then(|| quote!(let _ = &bytes;));
    quote! {
        #[automatically_derived]
        impl #impl_generics #kernel::State for #name #type_generics #where_clause {
            fn drain_writes(&mut self) -> u64 {
                #[allow(unused_mut, reason = "a state without fields folds nothing")]
                let mut fold = #kernel::Fold::EMPTY;
                #(#drains)*
                fold.value()
            }

            fn encode(&self, bytes: &mut ::std::vec::Vec<u8>) {
                #use_bytes
                #(#encodes)*
            }

            fn decode(bytes: &mut &[u8]) -> ::core::result::Result<Self, #kernel::StateDecodeError> {
                #use_bytes
                ::core::result::Result::Ok(Self { #(#decodes,)* })
            }
        }
    }
}
